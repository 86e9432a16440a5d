"""What `build` of the norms is made of, with torch; see `artifacts`."""
