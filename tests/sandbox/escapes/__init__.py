"""Attempts to get out of the sandbox or around its doors, as a program that runs inside. Standard library only.

`tests/sandbox/test_escapes.py` carries them out and watches the host; docs/security.md lists them.
"""
