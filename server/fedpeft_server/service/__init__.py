"""The long-lived coordinator: its processes, ports, enrolment and supervision."""
