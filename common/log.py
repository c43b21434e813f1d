"""The pack's logger, so that users can filter what it writes."""

import logging

logger = logging.getLogger("inlay")
