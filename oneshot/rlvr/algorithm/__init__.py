"""From rollouts to a new policy: advantages, loss, update, weight synchronisation."""
