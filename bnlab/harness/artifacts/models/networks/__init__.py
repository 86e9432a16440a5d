"""What `build` of the models is made of, with torch; see `artifacts`."""
