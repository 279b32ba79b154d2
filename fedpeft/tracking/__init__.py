"""Where the figures of a run go besides ``metrics.jsonl``: to trackers, which are plug-ins."""

from fedpeft.tracking.event_figures import figures
from fedpeft.tracking.trackers import GROUP, Tracker, open_trackers, tracker_names, tracking

__all__ = ["GROUP", "Tracker", "figures", "open_trackers", "tracker_names", "tracking"]
