"""The commands sweep, report and runs, and in `questions` the experiments; `answers` has the words."""
