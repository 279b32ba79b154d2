"""One run in the coordinator: who is asked, what they answer, and the state that follows."""
