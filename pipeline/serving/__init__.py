"""A running server, seen from outside: its record, its health, stopping it, talking to it.

Standard library only: the controller and every toolchain import this.
"""
