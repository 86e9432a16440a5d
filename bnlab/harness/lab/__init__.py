"""The commands of sweeps: sweep, report and runs; what words on the command line stand for, and who runs the jobs."""
