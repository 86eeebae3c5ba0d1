"""Honest splits: who trains, who validates, who is held out; leaks, damage, shift, audit."""
