"""What `read` of the data sets is made of, with torch; see `artifacts`."""
