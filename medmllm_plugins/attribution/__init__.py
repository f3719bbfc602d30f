"""What a model looked at: where its rows stand on the pictures, attributions there, and checks of them."""
