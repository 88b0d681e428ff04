"""Twenty passages about five subjects, and a question whose answer is in one of them."""

PASSAGES = [
    "Sourdough bread rises because wild yeast in its starter makes carbon dioxide; lactic acid bacteria sour it.",
    "A pinch of salt strengthens the gluten network of a dough and slows its fermentation.",
    "Puff pastry is laminated: butter is folded between layers of dough and turned to steam in the oven.",
    "Rye flour holds more water than wheat flour, which is why rye loaves keep fresh for a week.",
    "The Moon's gravity raises two bulges in the oceans, so most coasts see two high tides a day.",
    "A total solar eclipse happens when the Moon passes exactly between the Earth and the Sun.",
    "Saturn's rings consist mostly of water ice, in pieces from dust to boulders.",
    "Venus is hotter than Mercury because its thick carbon dioxide atmosphere traps heat.",
    "A goalkeeper may handle the ball only inside the penalty area of the own team.",
    "In tennis a score of forty all is called deuce; a player must then win two points in a row.",
    "The marathon is 42.195 kilometres long, a distance fixed for the Olympic Games of London in 1908.",
    "A chess game ends in a draw when the player to move has no legal move and is not in check.",
    "Redis keeps its data in memory and can append every write to a file, which it replays after a restart.",
    "A database index speeds up reads at the price of slower writes and more disk space.",
    "Two-phase commit lets several databases agree on whether a transaction takes place.",
    "A message queue decouples the program that produces work from the one that performs it.",
    "Honey bees tell each other the direction and distance of flowers by a waggle dance.",
    "Bats find insects in the dark by the echoes of their ultrasonic calls.",
    "Penguins keep their eggs warm by balancing them on their feet below a fold of skin.",
    "Salmon return to the river of their birth to spawn, guided by its smell.",
]

#: Question -> index of the passage that answers it.
QUESTIONS = {
    "What makes sourdough bread rise?": 0,
    "Why are there two high tides every day?": 4,
    "How far do you have to run in a marathon?": 10,
    "How does Redis survive a restart without losing its data?": 12,
    "How do bees show their hive mates where the flowers are?": 16,
}
