"""What is measured on a trained network: functions `run -> frame`, one for each table, cached with the run."""
