"""The machinery that runs any component: the actor, its mailboxes, effects and watches, and the node around them."""
