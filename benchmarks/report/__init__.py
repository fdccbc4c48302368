"""``lepto report``: what is known about a package, as one page that works offline."""
