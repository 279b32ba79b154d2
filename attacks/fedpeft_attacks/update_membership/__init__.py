"""Whose records made an update: membership told from one update, at every stage and over several rounds.

The adversary holds the base, the adapter before the round, auxiliary records of other organisations, and
candidate records. It takes each candidate's own gradient and compares it with what it observed.
"""
