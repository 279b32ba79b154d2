"""What nodes and coordinators say to each other."""
