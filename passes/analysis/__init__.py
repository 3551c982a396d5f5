"""What a graph shows, and the nodes that tell it: none of the graph's own nodes is changed here."""
