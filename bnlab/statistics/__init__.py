"""Statistics as values: of a layer, of a network, of all channels side by side, and what measuring them took."""
