"""What is asked: the commands (sweep, figures, runs) and one module for each question."""
