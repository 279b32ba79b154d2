"""PEFT methods, each with declared and tested traits."""
