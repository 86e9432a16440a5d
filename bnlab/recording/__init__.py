"""Recording batch moments: `block` of a training, `frozen` of one pass; `trace` keeps and replays them."""
