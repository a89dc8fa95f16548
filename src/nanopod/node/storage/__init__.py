"""Files that an instance needs before it starts: fetched from where they are, kept once per node, given to each."""
