"""One folder for each application that Lepto is measured on."""
