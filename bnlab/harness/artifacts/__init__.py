"""Networks and what they are trained on.

`settings` names a network, `producing` makes sure that it is there, `reproducing` gives its weights of past steps.
"""
