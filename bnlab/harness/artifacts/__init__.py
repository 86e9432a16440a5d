"""Networks and what they are trained on.

`settings` names a network, `runs` says what lies on disk of it, `producing` makes sure that it is there.
"""
