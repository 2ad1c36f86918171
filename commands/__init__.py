"""The commands of the command line, a file each. Whatever is heavy they import when they are called."""
