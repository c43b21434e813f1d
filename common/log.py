"""The pack's one logger: a user can filter its lines by the name `inlay`."""

import logging

logger = logging.getLogger("inlay")
