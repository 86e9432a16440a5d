"""What is committed agrees with what the code gives: python -m tests.checks [NAME ...].

A module here is a check, made once by `make test` beside the tests: of committed pages and the numbers that others
quote from them, of links, of the programs that the documentation shows, of what a package has and what imports what.
Its functions called `find_...` yield what is wrong, a line each with what to do. `outcomes` has what several read.
"""
