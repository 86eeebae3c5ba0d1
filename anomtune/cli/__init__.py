"""Every command, and all that draws on a terminal."""
