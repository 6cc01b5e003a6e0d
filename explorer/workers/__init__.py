"""Workers beyond this process: threads, other processes, other machines."""

from explorer.workers.cluster import DaskHands, connect, hands_of
from explorer.workers.crew import Crew, Hands
from explorer.workers.images import Opening, Place

__all__ = ["Crew", "DaskHands", "Hands", "Opening", "Place", "connect", "hands_of"]
