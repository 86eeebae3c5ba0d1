"""Imported last by what drivers are forked off: none of that is garbage in any of them."""

import gc

gc.collect()
gc.freeze()
