"""The grammar of the simulated marketplace: themes that people may care about, and the words that belong to each.

A theme is one interest. Several themes share a leaf category, so that an item's category alone does not give the interest
away; the words of its title do. The vocabulary is closed and made of common words; brands are made up per seed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

SEASONS: dict[str, tuple[int, ...]] = {
    "spring": (3, 4, 5),
    "summer": (6, 7, 8),
    "autumn": (9, 10, 11),
    "winter": (12, 1, 2),
}


@dataclass(frozen=True)
class Theme:
    """One interest and the words that show it.

    Attributes:
        phrase: the interest's text, 2 to 4 words.
        categories: broad to narrow; the last one is Item.category.
        nouns: core words of titles.
        modifiers: words that qualify them.
        motives: what people want with it, each fits after "wants to".
        price: lowest and highest price.
        months: months in which it is in season; empty is the whole year.
        tag_nouns: core words of tags.
        film: whether its items are films, titled like films.
    """

    phrase: str
    categories: tuple[str, ...]
    nouns: tuple[str, ...]
    modifiers: tuple[str, ...]
    motives: tuple[str, ...]
    price: tuple[float, float]
    months: tuple[int, ...]
    tag_nouns: tuple[str, ...]
    film: bool

    @property
    def category(self) -> str:
        """The leaf category, Item.category."""
        return self.categories[-1]

    def in_season(self, month: int) -> bool:
        """Whether the theme suits a month, 1 to 12."""
        return not self.months or month in self.months

    def suits(self, season: str) -> bool:
        """Whether the theme is in season for at least one month of spring, summer, autumn or winter."""
        return any(self.in_season(month) for month in SEASONS[season])


def season_of(month: int) -> str:
    """The season of a month, 1 to 12."""
    return next(season for season, months in SEASONS.items() if month in months)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _goods(
    phrase: str, path: str, price: tuple[float, float], months: tuple[int, ...], nouns: str, modifiers: str, motives: str
) -> Theme:  # fmt: skip
    categories = tuple(part.strip() for part in path.split(">"))
    return Theme(phrase, categories, _words(nouns), _words(modifiers), _words(motives), price, months, _words(nouns), False)


def _film(phrase: str, path: str, months: tuple[int, ...], nouns: str, tag_nouns: str, modifiers: str, motives: str) -> Theme:
    categories = ("Films", *(part.strip() for part in path.split(">")))
    return Theme(phrase, categories, _words(nouns), _words(modifiers), _words(motives), (2.0, 15.0), months, _words(tag_nouns), True)


_ALL: tuple[int, ...] = ()

# fmt: off
THEMES: tuple[Theme, ...] = (
    # outdoor
    _goods("trail hiking", "Outdoor > Hiking", (15, 220), (4, 5, 6, 7, 8, 9, 10),
           "hiking boots, trekking poles, day pack, trail map case, hiking socks, rain shell, water flask",
           "waterproof, ankle-high, breathable, non-slip, lightweight, padded, quick-drying",
           "stay dry on long trails, walk the hills at weekends, keep a steady foot on rough paths"),
    _goods("winter mountaineering", "Outdoor > Hiking", (25, 400), (11, 12, 1, 2, 3),
           "ice axe, crampons, snow gaiters, down jacket, alpine gloves, balaclava, snowshoes",
           "insulated, windproof, steel, thermal, four-season, reinforced, snow-ready",
           "climb safely on snow and ice, keep warm on high ground, reach summits in winter"),
    _goods("family camping", "Outdoor > Camping", (12, 350), (5, 6, 7, 8, 9),
           "family tent, camping stove, sleeping bag, air mattress, cool box, camp lantern, folding chair",
           "roomy, six-person, rechargeable, foldable, weatherproof, easy-pitch, cosy",
           "spend nights outside with the family, sleep well under canvas, cook together in the open"),
    _goods("ultralight backpacking", "Outdoor > Camping", (18, 420), (4, 5, 6, 7, 8, 9),
           "one-person tent, titanium pot, down quilt, frameless pack, gas burner, bivy bag, water filter",
           "ultralight, packable, compact, minimalist, trimmed, silnylon, featherweight",
           "carry less on long routes, cover more ground in a day, travel on foot for weeks"),
    _goods("road cycling", "Sports > Cycling", (10, 300), (3, 4, 5, 6, 7, 8, 9, 10),
           "cycling jersey, bib shorts, road tyres, clipless pedals, bike computer, racing saddle, bottle cage",
           "aerodynamic, carbon, slim-fit, reflective, high-pressure, ventilated, race-grade",
           "ride faster on the road, train for long rides, climb passes in comfort"),
    _goods("mountain biking", "Sports > Cycling", (10, 320), (4, 5, 6, 7, 8, 9, 10),
           "knee pads, trail helmet, knobbly tyres, dropper post, mud guard, wide handlebar, full-finger gloves",
           "impact-proof, tubeless, grippy, shock-absorbing, rugged, mud-shedding, off-road",
           "ride rough trails with control, jump without injury, explore forest tracks"),
    _goods("distance running", "Sports > Fitness", (9, 210), _ALL,
           "running shoes, hydration vest, running tights, sports watch, energy gels, sweatband, foam roller",
           "cushioned, chafe-free, long-run, sweat-wicking, neutral, race-day, responsive",
           "finish a first marathon, run further without pain, keep a steady pace"),
    _goods("strength training at home", "Sports > Fitness", (12, 480), _ALL,
           "kettlebell, adjustable dumbbells, weight bench, pull-up bar, resistance bands, lifting gloves, rubber plates",
           "cast-iron, heavy-duty, space-saving, knurled, doorway, stackable, hex",
           "build muscle without a gym, lift at home before work, get stronger step by step"),
    _goods("yoga and stretching", "Sports > Fitness", (8, 110), _ALL,
           "yoga mat, cork block, stretching strap, meditation cushion, yoga leggings, bolster, massage ball",
           "non-toxic, high-waisted, extra-thick, calming, eco-friendly, soft-grip, studio",
           "unwind after work, become more flexible, find a calm morning routine"),
    _goods("river fishing", "Outdoor > Lakes & Rivers", (6, 260), (4, 5, 6, 7, 8, 9, 10),
           "fly rod, spinning reel, tackle box, landing net, chest waders, lure set, fishing line",
           "medium-action, braided, corrosion-proof, floating, telescopic, knotless, hand-tied",
           "spend quiet mornings by the river, catch trout with skill, learn to cast well"),
    _goods("lake paddling", "Outdoor > Lakes & Rivers", (14, 600), (5, 6, 7, 8, 9),
           "paddle board, kayak paddle, dry bag, life vest, inflatable kayak, spray deck, board pump",
           "inflatable, buoyant, two-seat, salt-proof, roll-top, puncture-proof, adjustable",
           "glide over calm water, explore lakes in summer, paddle with friends"),
    # kitchen and food
    _goods("home espresso brewing", "Kitchen > Coffee & Tea", (9, 700), _ALL,
           "espresso machine, burr grinder, milk jug, coffee tamper, knock box, portafilter, coffee scale",
           "dual-boiler, stainless, stepless, precision, barista-style, bottomless, pressure-gauged",
           "pull cafe quality shots at home, learn latte art, master the perfect grind"),
    _goods("loose leaf tea", "Kitchen > Coffee & Tea", (5, 120), _ALL,
           "glass teapot, tea infuser, green tea, tea tin, gooseneck kettle, matcha whisk, oolong sampler",
           "hand-blown, fragrant, first-flush, bamboo, airtight, temperature-controlled, single-garden",
           "slow down with a good cup, taste teas from many gardens, brew leaves with care"),
    _goods("sourdough baking", "Kitchen > Baking", (6, 160), _ALL,
           "proofing basket, dutch oven, bread lame, dough scraper, rye flour, baking stone, starter jar",
           "cast, rattan, stone-ground, organic, crackly-crust, unbleached, oval",
           "bake bread with a crisp crust, keep a starter alive, know what is in the bread"),
    _goods("festive cake decorating", "Kitchen > Baking", (4, 90), (10, 11, 12),
           "piping set, cake stand, sugar pearls, fondant roller, cookie cutters, food colouring, gingerbread mould",
           "festive, glittery, star-shaped, rotating, edible, reusable, snowflake",
           "bring a handsome cake to the table, bake with the children at Christmas, decorate like a pastry chef"),
    _goods("backyard grilling", "Kitchen > Cookware", (8, 650), (4, 5, 6, 7, 8, 9),
           "charcoal grill, grill tongs, smoker box, meat thermometer, barbecue rub, pizza stone, grill cover",
           "smoky, long-handled, wood-fired, instant-read, charcoal, kettle, heat-proof",
           "feed friends from the grill, smoke meat low and slow, cook outside all summer"),
    _goods("healthy meal prep", "Kitchen > Cookware", (7, 230), _ALL,
           "lunch box, steamer basket, salad spinner, blender, food scale, spiral cutter, freezer containers",
           "leakproof, portioned, glass, low-fat, dishwasher-safe, compartment, high-speed",
           "eat well on busy days, cook once for the whole week, cut down on takeaway"),
    _goods("asian home cooking", "Kitchen > Cookware", (4, 180), _ALL,
           "carbon steel wok, rice cooker, bamboo steamer, soy sauce, chef cleaver, ramen bowls, chilli crisp",
           "hand-hammered, pre-seasoned, naturally-brewed, spicy, ceramic, non-stick, long-grain",
           "cook noodles like a street stall, taste the flavours of Asia, fold dumplings at home"),
    # garden and home
    _goods("vegetable growing", "Garden > Beds & Plants", (3, 190), (2, 3, 4, 5, 6, 7),
           "raised bed, tomato seeds, seed tray, compost bin, plant labels, watering can, bean trellis",
           "heirloom, peat-free, cedar, organic-certified, frost-proof, self-watering, galvanised",
           "harvest food from the garden, grow tomatoes that taste, sow a plot from seed"),
    _goods("balcony flowers", "Garden > Beds & Plants", (4, 110), (3, 4, 5, 6, 7, 8),
           "window box, geranium set, hanging basket, flower bulbs, terracotta pot, petunia mix, balcony planter",
           "colourful, trailing, sun-loving, rail-mounted, glazed, long-blooming, scented",
           "turn the balcony into a garden, see flowers all summer, sit among blossoms"),
    _goods("wild bird feeding", "Garden > Wildlife", (4, 95), (10, 11, 12, 1, 2, 3),
           "bird feeder, suet balls, nest box, sunflower hearts, bird bath, seed mix, feeder pole",
           "squirrel-proof, energy-rich, hand-built, window-mounted, husk-free, winter, sheltered",
           "watch birds from the window, help wildlife through the cold, tell the finches apart"),
    _goods("houseplant care", "Home > Decor", (4, 130), _ALL,
           "monstera plant, plant mister, grow light, moss pole, potting mix, self-watering pot, plant shelf",
           "leafy, low-light, full-spectrum, brass, pet-safe, air-purifying, tropical",
           "fill the rooms with green, keep tropical plants alive, bring nature indoors"),
    _goods("cosy room decor", "Home > Decor", (6, 240), (9, 10, 11, 12, 1, 2),
           "wool throw, scented candle, string lights, floor cushion, knitted pouf, table lamp, woven rug",
           "chunky, warm-white, hygge, plush, soft-glow, fringed, earth-toned",
           "make dark evenings warm, curl up with a blanket, give a room a soft mood"),
    _goods("home organising", "Home > Storage", (4, 160), _ALL,
           "storage baskets, drawer dividers, shoe rack, label maker, pantry jars, under-bed box, wall hooks",
           "see-through, modular, slimline, labelled, expandable, lidded, clutter-free",
           "find everything at once, clear the clutter, use every corner of a small flat"),
    _goods("smart home control", "Home > Smart Home", (12, 280), _ALL,
           "smart bulb, smart plug, door sensor, video doorbell, smart thermostat, motion light, voice hub",
           "wifi, energy-saving, app-controlled, battery-powered, dimmable, voice-ready, scheduled",
           "run the home by voice, save energy without effort, see who is at the door"),
    # beauty
    _goods("gentle skin care", "Beauty > Skin Care", (5, 90), _ALL,
           "face cream, cleansing milk, toner, hydrating serum, moisturizer, face mask, cleansing balm",
           "fragrance-free, soothing, hypoallergenic, aloe, oat, calming-care, mild",
           "calm sensitive skin, keep skin soft without irritation, build a simple skin routine"),
    _goods("youthful skin care", "Beauty > Skin Care", (9, 160), _ALL,
           "retinol serum, eye cream, night cream, vitamin c serum, firming lotion, face roller, peptide ampoule",
           "anti-wrinkle, firming, brightening, collagen, hyaluronic, overnight, age-defying",
           "smooth fine lines, wake up with fresher skin, keep a youthful glow"),
    _goods("summer sun care", "Beauty > Skin Care", (5, 60), (5, 6, 7, 8, 9),
           "sunscreen, after-sun gel, tanning lotion, sun stick, lip balm, sun mist, mineral sunblock",
           "broad-spectrum, reef-safe, sweatproof, cooling, tinted, non-greasy, high-factor",
           "enjoy the sun without burning, protect the skin at the beach, tan gently"),
    _goods("bold eye makeup", "Beauty > Makeup", (4, 75), _ALL,
           "eyeshadow palette, liquid eyeliner, false eyelashes, mascara, glitter pigment, brow gel, eye primer",
           "smoky-eye, smudge-proof, shimmering, dramatic, jet-black, highly-pigmented, matte-finish",
           "try striking looks for the night, make the eyes stand out, play with colour"),
    _goods("natural everyday makeup", "Beauty > Makeup", (4, 70), _ALL,
           "bb cream, lip gloss, cream blush, powder foundation, concealer, makeup sponge, face powder",
           "sheer, buildable, dewy, nude, lightweight-feel, mineral, skin-like",
           "look fresh in five minutes, even out the skin lightly, wear makeup that feels like none"),
    _goods("nail art at home", "Beauty > Nails", (3, 60), _ALL,
           "nail polish, nail stamping plate, gel lamp, top coat, nail stickers, cuticle oil, nail dotting tools",
           "chip-resistant, holographic, quick-dry, french, neon, pastel, long-wear",
           "paint nails like a salon, change colours every week, try small patterns by hand"),
    _goods("curly hair care", "Beauty > Hair Care", (5, 80), _ALL,
           "curl cream, leave-in conditioner, diffuser, wide-tooth comb, satin bonnet, hair mask, defining gel",
           "sulfate-free, moisturising, frizz-taming, shea, coconut, curl-defining, detangling",
           "let natural curls bounce, tame frizz in damp weather, keep coils moisturised"),
    _goods("salon hair styling", "Beauty > Hair Care", (8, 190), _ALL,
           "flat iron, hair dryer, curling wand, heat spray, hair color kit, styling brush, volumizing shampoo",
           "ionic, ceramic-plated, volumising, heat-protecting, glossy, salon-grade, straightening",
           "get a blow-dry look at home, wear sleek straight hair, colour hair without a salon"),
    _goods("signature perfumes", "Beauty > Fragrance", (12, 180), _ALL,
           "eau de parfum, body mist, cologne, perfume oil, travel atomizer, fragrance set, scented lotion",
           "woody, floral, citrus, musky, vanilla, long-lasting, oriental",
           "find a scent of one's own, leave a lasting note, change fragrance with the mood"),
    _goods("relaxing bath rituals", "Beauty > Fragrance", (4, 70), (9, 10, 11, 12, 1, 2, 3),
           "bath salts, body scrub, bubble bath, shower gel, body butter, bath bomb, loofah",
           "lavender, epsom, creamy, exfoliating, foaming, aromatic, whipped",
           "end the day in a warm bath, soften dry winter skin, have a spa evening at home"),
    # phones and electronics
    _goods("rugged phone protection", "Phones > Cases", (5, 65), _ALL,
           "shockproof case, tempered glass, screen protector, armor case, belt holster, waterproof pouch, camera lens guard",
           "drop-tested, dual-layer, scratch-resistant, military-grade, bubble-free, full-body, raised-edge",
           "keep a phone whole after falls, protect the screen on site, stop worrying about scratches"),
    _goods("stylish phone covers", "Phones > Cases", (4, 55), _ALL,
           "leather wallet case, silicone cover, flip case, phone charm, clear case, bumper skin, glitter case",
           "slim, floral-print, rhinestone, marble, card-holding, snap-on, rose-gold",
           "match the phone to an outfit, carry cards and phone in one, show some personality"),
    _goods("charging on the go", "Phones > Chargers", (5, 90), _ALL,
           "power bank, car charger, usb cable, wall charger, wireless pad, spare battery, charging dock",
           "fast-charging, high-capacity, retractable, dual-port, extra-long, pocket-size, braided-nylon",
           "never run out of battery, charge quickly between meetings, power devices on trips"),
    _goods("hands-free calling", "Phones > Headsets", (8, 140), _ALL,
           "bluetooth headset, car speakerphone, dash mount, earbuds, neckband headset, windshield mount, ear hooks",
           "noise-cancelling, wireless, one-touch, magnetic, long-talk, over-ear, multipoint",
           "talk safely while driving, keep both hands free at work, hear calls clearly in noise"),
    _goods("home cinema sound", "Electronics > Audio", (20, 900), _ALL,
           "soundbar, subwoofer, av receiver, surround speakers, speaker stands, hdmi cable, projector screen",
           "wall-mounted, deep-bass, immersive, eight-channel, lossless, low-latency, powered",
           "feel films at home, hear every detail of a score, build a small cinema"),
    _goods("vinyl record listening", "Electronics > Audio", (9, 480), _ALL,
           "turntable, record brush, phono preamp, vinyl crate, stylus, slipmat, bookshelf speakers",
           "belt-driven, anti-static, walnut, analog, elliptical, warm-sounding, hi-fi",
           "hear albums from start to end, collect records with history, enjoy a warm analog sound"),
    _goods("pc gaming gear", "Electronics > Gaming", (12, 850), _ALL,
           "gaming mouse, mechanical keyboard, gaming headset, curved monitor, mouse pad, graphics card, gaming chair",
           "rgb, low-lag, ergonomic, high-refresh, tactile, ultrawide, programmable",
           "win more ranked matches, play without lag, build a dream setup"),
    _goods("retro console games", "Electronics > Gaming", (8, 240), _ALL,
           "handheld console, game cartridge, arcade stick, pixel platformer, controller adapter, crt cable, console stand",
           "eight-bit, refurbished, nostalgic, pocket, sixteen-bit, boxed, two-player",
           "relive childhood games, collect old consoles, share classics with friends"),
    _goods("travel photography", "Electronics > Cameras", (9, 980), _ALL,
           "mirrorless camera, travel tripod, camera strap, lens filter, camera backpack, memory card, prime lens",
           "full-frame, wide-angle, carbon-fibre, weather-sealed, fast-aperture, polarising, foldaway",
           "bring home better pictures, catch the light of far places, shoot landscapes at dawn"),
    # family, pets, craft
    _goods("newborn sleep care", "Family > Baby", (6, 320), _ALL,
           "baby swaddle, white noise machine, bassinet, sleep sack, night light, baby monitor, crib sheet",
           "breathable-mesh, muslin, soft-touch, hands-in, dim-glow, washable, bamboo-cotton",
           "help a newborn sleep through, get some rest as parents, keep the cot safe"),
    _goods("toddler learning play", "Family > Baby", (5, 120), _ALL,
           "stacking rings, wooden blocks, shape sorter, picture cards, activity cube, counting beads, play mat",
           "montessori, chunky-grip, rainbow, bpa-free, sensory, smooth-edged, early-learning",
           "let a toddler learn by play, train small hands, play without a screen"),
    _goods("family board games", "Family > Games", (8, 90), (10, 11, 12, 1, 2),
           "strategy game, card game, dice set, quiz game, jigsaw puzzle, cooperative game, party game",
           "family-friendly, fast-paced, award-winning, thousand-piece, tabletop, cooperative, wooden",
           "gather everybody round the table, spend rainy days together, laugh without screens"),
    _goods("dog walks and training", "Pets > Dogs", (4, 140), _ALL,
           "dog harness, training treats, dog leash, clicker, chew toy, poop bags, dog raincoat",
           "no-pull, reflective-stitch, grain-free, tug-resistant, bite-size, escape-proof, durable",
           "enjoy calm walks with the dog, teach a puppy manners, reward good behaviour"),
    _goods("indoor cat play", "Pets > Cats", (4, 150), _ALL,
           "cat tree, feather wand, scratching post, cat tunnel, puzzle feeder, catnip mouse, window perch",
           "sisal, plush-lined, interactive, multi-level, rustling, sturdy, refillable",
           "keep an indoor cat busy, save the sofa from claws, play with a curious cat"),
    _goods("hand knitting", "Craft > Textiles", (3, 95), (8, 9, 10, 11, 12, 1, 2),
           "merino yarn, circular needles, stitch markers, knitting pattern, yarn bowl, sock yarn, cable needle",
           "hand-dyed, bulky, superwash, soft-spun, interchangeable, variegated, alpaca",
           "knit gifts by hand, make a first jumper, keep the hands busy in the evening"),
    _goods("sewing own clothes", "Craft > Textiles", (4, 420), _ALL,
           "sewing machine, linen fabric, tailor shears, dress pattern, thread set, pin cushion, rotary cutter",
           "printed, free-arm, double-gauze, serrated, pre-washed, multi-stitch, bias-cut",
           "sew clothes that fit, mend and alter at home, wear something nobody else has"),
    _goods("watercolour painting", "Craft > Art", (3, 110), _ALL,
           "watercolour set, sable brush, cotton paper, travel easel, masking fluid, brush pen, sketchbook",
           "cold-pressed, artist-grade, lightfast, fine-tip, half-pan, granulating, hardbound",
           "paint outdoors, catch light with a brush, learn to paint with water"),
    _goods("woodworking projects", "Craft > Workshop", (6, 520), _ALL,
           "hand plane, chisel set, workbench vise, random sander, dovetail saw, wood glue, marking gauge",
           "japanese, beech, cordless, fine-tooth, honed, oak, quick-release",
           "build furniture by hand, cut clean joints, make something that lasts"),
    _goods("crime novels", "Books > Fiction", (5, 30), _ALL,
           "murder mystery, detective novel, police thriller, cold case story, courtroom thriller, spy novel, heist novel",
           "nordic, twisty, hard-boiled, page-turning, psychological, slow-burn, unsolved",
           "guess the culprit early, read with a racing pulse, follow a clever detective"),
    _goods("fantasy novels", "Books > Fiction", (5, 35), _ALL,
           "dragon saga, epic fantasy, magic academy novel, sword quest, fairy court tale, wizard trilogy, myth retelling",
           "sweeping, enchanted, world-building, illustrated, coming-of-age, dark-magic, heroic",
           "get lost in another world, follow heroes through many volumes, dream of magic"),
    # films
    _film("space adventure films", "Adventure > Sci-Fi", _ALL,
          "starship, orbit, galaxy, moon base, comet, alien signal, star voyage",
          "space adventure film, alien world film, starship epic", "effects-rich, awe-inspiring, suspenseful, futuristic, interstellar",
          "escape to distant worlds, follow brave crews through space, wonder about the future"),
    _film("dark future thrillers", "Thriller > Sci-Fi", _ALL,
          "android, neon city, clone, virus code, time loop, machine mind, colony",
          "dystopian sci-fi film, android thriller, time travel film", "cyberpunk, mind-bending, bleak, high-concept, dystopian",
          "think about where machines lead, puzzle over twisted timelines, feel the chill of a dark future"),
    _film("romantic comedies", "Romance > Comedy", _ALL,
          "wedding, summer kiss, love letter, bridesmaid, blind date, second honeymoon, sweetheart",
          "romantic comedy, feel-good love film, wedding comedy", "charming, light-hearted, witty, feel-good, bittersweet",
          "laugh and sigh on a film night, believe in happy endings, relax with a sweet story"),
    _film("slapstick comedies", "Comedy", _ALL,
          "fool, road trip, roommate, prank, vacation, lottery ticket, talking dog",
          "slapstick comedy, buddy comedy, road trip comedy", "silly, outrageous, quick-witted, absurd, laugh-out-loud",
          "laugh out loud after work, share jokes with friends, switch off for an evening"),
    _film("family animation films", "Children's > Animation", (11, 12, 1, 6, 7, 8),
          "little dragon, toy, penguin, fairy, magic forest, puppy, snow queen",
          "animated family film, animated musical, talking animal film", "heart-warming, colourful-drawn, playful, all-ages, musical",
          "watch something with the children, see drawn worlds come alive, share a warm story"),
    _film("true life dramas", "Drama", _ALL,
          "father, winter house, promise, mother, small town, letter home, silence",
          "character drama, family drama film, true story film", "moving, quiet, tender, honest, intimate",
          "be moved by real lives, understand other people, talk long after the film"),
    _film("war epics", "Drama > War", _ALL,
          "battalion, trench, general, last bridge, night raid, soldier, armistice",
          "war film, battlefield epic, wartime drama", "harrowing, historical, large-scale, heroic-hearted, gritty",
          "see history on a large canvas, follow soldiers through hard choices, learn about past wars"),
    _film("crime thrillers", "Crime > Thriller", _ALL,
          "witness, heist, alibi, undercover, hitman, verdict, ransom",
          "crime thriller, heist film, gangster film", "tense, stylish, twist-filled, cold-blooded, fast",
          "sit on the edge of the seat, outguess the criminals, follow a clever plan"),
    _film("haunted horror films", "Thriller > Horror", (9, 10, 11),
          "haunted house, scream, cellar, curse, midnight visitor, graveyard, possession",
          "haunted house film, supernatural horror film, slasher film", "creepy, nerve-racking, ghostly, gory, chilling",
          "enjoy a good scare, test one's nerves at midnight, shiver with friends"),
    _film("action blockbusters", "Thriller > Action", _ALL,
          "strike force, bullet, explosion, fugitive, deadline, bodyguard, showdown",
          "action film, chase film, martial arts film", "explosive, breakneck, stunt-heavy, adrenaline, muscular",
          "feel the rush of a chase, see great stunts, cheer for the hero"),
    _film("classic westerns", "Action > Western", _ALL,
          "sheriff, dusty trail, outlaw, saloon, gold creek, last rider, stagecoach",
          "western film, outlaw western, frontier film", "dusty, wide-open, lonesome, vintage, sun-baked",
          "ride through wide country, see old duels again, enjoy slow frontier tales"),
    _film("noir mysteries", "Mystery > Film-Noir", _ALL,
          "blonde, shadow street, private eye, stolen pearl, harbour fog, double cross, night train",
          "noir mystery film, private eye film, whodunit film", "black-and-white, moody, smoke-filled, cynical, elegant",
          "solve the case with the detective, sink into a moody city, enjoy sharp dialogue"),
    _film("stage musicals", "Comedy > Musical", (11, 12, 1),
          "chorus, dancing shoes, melody, broadway star, serenade, opening night, tap dancer",
          "musical film, dance film, song and dance show", "toe-tapping, glamorous, joyful, dazzling, old-time",
          "hum the songs for days, see great dancing, brighten up a grey day"),
    _film("fantasy quest films", "Adventure > Fantasy", _ALL,
          "sword, kingdom, wizard, ring, lost temple, dragon gate, unicorn",
          "fantasy adventure film, sword and sorcery film, treasure quest film", "magical, legendary, swashbuckling, mythic, grand",
          "follow a quest against the odds, see legends come alive, feel like a child again"),
    _film("documentary films", "Documentary", _ALL,
          "portrait, ocean journey, true story, rainforest, street musician, witnesses of time, glacier",
          "nature documentary, music documentary, documentary film", "eye-opening, thoughtful, unhurried, investigative, intimate-view",
          "learn how the world works, meet remarkable people, see nature up close"),
)
# fmt: on
