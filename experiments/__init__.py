"""The commands (sweep, figures, answers, runs) and, in `questions`, what is asked."""
