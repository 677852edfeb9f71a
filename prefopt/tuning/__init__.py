"""Every loss at its best: equal numbers of trials, then the winner and the defaults trained anew."""
