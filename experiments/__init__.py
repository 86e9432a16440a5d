"""The commands (sweep, figures, answers, report, results, runs) and, in `questions`, what is asked."""
