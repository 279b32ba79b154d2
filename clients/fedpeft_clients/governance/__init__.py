"""What an organisation decides: its policy, data sets, coordinators, and the runs that it takes part in."""
