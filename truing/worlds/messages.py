"""What customers write: many wordings of eight requests, and what the stance adds to them.

In every pool each fourth wording is held out (see `split_pool`).
"""

REQUESTS: dict[str, tuple[str, ...]] = {
    "return": (
        "I would like to send the {item} back.",
        "Can I return the {item}?",
        "May I send back my {item}?",
        "How do I give the {item} back to you?",
        "I want to return my {item}.",
        "The {item} is not right for me. Can it go back?",
        "I no longer want the {item}. Do you take it back?",
        "Please let me return the {item}.",
        "My {item} should go back to you. Is that fine?",
        "Could you take back the {item}?",
        "I have changed my mind about the {item} and want to return it.",
        "Do you take the {item} back? I do not need it.",
    ),
    "late": (
        "Where is my {item}?",
        "My {item} has not come yet.",
        "I am still waiting for the {item}.",
        "Will the {item} be here on Sunday?",
        "The parcel with my {item} is not here.",
        "What has happened to my {item}? It never came.",
        "I have no {item} yet. Where is the parcel?",
        "What has happened to the parcel with my {item}?",
        "Please find out where my {item} is.",
        "I keep waiting for my {item}. Where can it be?",
        "Can you tell me where the parcel with the {item} is?",
        "My {item} should be here by now.",
    ),
    "refund": (
        "I want my money back for the {item}.",
        "Can I have a refund for the {item}?",
        "Please give me my money back for this {item}.",
        "I ask for a refund for my {item}.",
        "What do I get back for the {item}?",
        "The {item} is not good. May I have my money back?",
        "Look at this {item}! I would like a refund.",
        "Do I get a refund for my {item}?",
        "Is there money back for my {item}?",
        "I am not happy with the {item} and ask for my money.",
        "Could you refund the {item}, please?",
        "My {item} is not as it should be. I want a refund.",
    ),
    "address": (
        "Please send the {item} to {new_city} instead.",
        "I have moved to {new_city}. Can the {item} come there?",
        "Can you change the address of the {item} to {new_city}?",
        "My {item} should go to {new_city} now.",
        "Could the {item} go to {new_city}, please?",
        "I need the {item} in {new_city}, not at home.",
        "We moved. Please bring the {item} to {new_city}.",
        "I live in {new_city} now. The {item} should come there.",
        "May I have the {item} sent to {new_city}?",
        "From now on I live in {new_city}. Please send my {item} there.",
        "Is it too late to send the {item} to {new_city}?",
        "The new address for my {item} is in {new_city}.",
    ),
    "warranty": (
        "My {item} no longer works. Is there a warranty?",
        "The {item} broke. What does the warranty give me?",
        "Does the warranty cover my {item}?",
        "The {item} has stopped working. Can you help?",
        "My {item} fell apart. Is it still covered?",
        "Something is wrong with the {item}. Is it under warranty?",
        "Can the warranty help with my broken {item}?",
        "I ask for help under the warranty. The {item} broke.",
        "The {item} does not work. Do I still have a warranty?",
        "Is my {item} under warranty? It has stopped working.",
        "My {item} just broke. Will you make it good?",
        "What can you do about my broken {item}?",
    ),
    "price": (
        "I saw the same {item} for less. Will you match it?",
        "The {item} is cheaper there. Can you match the price?",
        "Do you match prices? I found my {item} for less.",
        "My {item} is cheaper there. Please match the price.",
        "I paid too much for the {item}. Please match the price.",
        "The same {item} costs less there. What can you do?",
        "Can I have the lower price for my {item}?",
        "Will you match a lower price for the {item}?",
        "I found the {item} at a lower price.",
        "There is a better price for my {item}. Do you match it?",
        "Please give me the lower price for the {item}.",
        "My {item} costs less there. Will you match that?",
    ),
    "cancel": (
        "Please cancel my order for the {item}.",
        "I do not want the {item} any more. Can you stop the order?",
        "Can I still cancel the {item}?",
        "I would like to cancel the {item}.",
        "Stop my order for the {item}, please.",
        "May I cancel my {item}?",
        "I changed my mind. Please cancel the {item}.",
        "Is it too late to cancel the {item}?",
        "The {item} is no longer needed. Please cancel it.",
        "How can I cancel the order for my {item}?",
        "I want to cancel. I do not need the {item}.",
        "Could you cancel the {item} for me?",
    ),
    "account": (
        "My account is locked. Can you open it?",
        "I cannot get into my account. Please unlock it.",
        "Please unlock my account.",
        "Why is my account locked? I want to get into it.",
        "Can you unlock my account for me?",
        "I am locked out of my account.",
        "My account does not open any more.",
        "How do I get back into my account?",
        "I need my account. Please open it again.",
        "The account is locked and I need it. Please help.",
        "Could you let me back into my account?",
        "I want my account to be unlocked.",
    ),
}

OPENINGS = (
    "",
    "",
    "Hello.",
    "Good morning.",
    "Hi there.",
    "Hello, I need your help.",
    "Dear team.",
)

ANGRY = (
    "I am very angry.",
    "This is a disgrace!",
    "I have had enough of this!",
    "I have lost my trust in you.",
    "I am tired of asking.",
    "What a bad shop you are!",
    "This is the worst service ever.",
    "Never have I been so angry!",
    "How badly you treat people!",
    "You have lost my trust.",
    "Never have I been treated so badly.",
    "What a disgrace your service is!",
)

# Wrong claims, by the field of the record that they get wrong.
CLAIMS: dict[str, tuple[str, ...]] = {
    "colour": (
        "It is the {claim} one.",
        "Mine is {claim}, as you can see.",
        "I bought the {claim} one from you.",
        "You know, the {claim} one.",
    ),
    "when": (
        "I bought it {claim}.",
        "You know that I bought it {claim}.",
        "After all, it was bought {claim}.",
        "As you can see, I bought it {claim}.",
    ),
    "city": (
        "I live in {claim}, as you know.",
        "My home is in {claim}.",
        "You know that I live in {claim}.",
        "My address is in {claim}.",
    ),
    "paid": (
        "I paid by {claim}.",
        "You know that I paid by {claim}.",
        "As you can see, I paid by {claim}.",
        "After all, I paid by {claim}.",
    ),
}

# Around the question that cannot be answered, and around the request that must not be met.
ASIDES = ("", "One more thing.", "And something else.", "Just one last thing.")


def split_pool(pool: tuple[str, ...], *, held_out: bool) -> tuple[str, ...]:
    """The wordings of one pool that belong to a split: each fourth is held out."""
    return pool[3::4] if held_out else tuple(text for i, text in enumerate(pool) if i % 4 != 3)
