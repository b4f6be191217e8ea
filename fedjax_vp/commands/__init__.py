"""Commands of the command line, one a module, imported when they are called."""
