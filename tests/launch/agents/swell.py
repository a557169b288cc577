"""Takes more memory than its job asked for, and keeps it: the engine is to end it."""

import os
import time

held = bytearray(os.urandom(1 << 20)) * 2500
while True:
    time.sleep(1)
