"""Where the figures of a run go besides ``metrics.jsonl``: to trackers, which are plug-ins."""

from fedpeft.tracking.event_figures import figures
from fedpeft.tracking.tracker import Tracked, Tracker
from fedpeft.tracking.trackers import check_trackers, open_trackers, tracking

__all__ = ["Tracked", "Tracker", "check_trackers", "figures", "open_trackers", "tracking"]
