"""Networks and the data on which they are trained.

`settings` names a network, `runs` describes its files, `producing` makes sure that it is there.
"""
