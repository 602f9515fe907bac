"""Words that say nothing of any class, for WaffleCLIP: a list of this project's own."""

_LIST = """
anchor answer april arrow autumn balance barrel basket beacon bench bishop blanket border bottle
bread bridge bronze bucket butter button cabin camera candle canvas carbon carpet castle cereal
cellar chapter charter chimney circle citizen clay clock coffee collar comfort compass concert
copper corner cotton council cousin cradle crystal curtain dance decade degree desk dinner
doctor dollar door drawer dream drum echo editor elbow empire engine evening exam fabric factor
failure fence festival finger flame fortune freight funnel future galaxy garage gentle glass
goal grammar gravity guitar hammer handle harbor harvest helmet history hollow honey hotel
humble island jacket journal jungle kettle kingdom kitchen ladder lantern lawyer leather lecture
legend lemon letter library limit linen logic lumber machine manual marble margin market medal
melody member memory mercury method midnight minute mirror mixture modern moment monday motor
museum napkin needle notebook number ocean office orbit orchard oven paddle palace panel paper
parcel parlor patient pencil pepper permit pillow planet pocket poem police portal prayer price
prison profit puzzle quarter quiet rabbit radio railway random reason recipe remedy ribbon rival
rocket rumor saddle salary sample scale school season secret senate shadow shelter signal silver
sister soap soldier song speech spiral spoon stadium station steam stereo story stove sugar
summer supper symbol system tailor talent tavern teacher temple tennis theory thunder ticket
timber tobacco tomorrow tower traffic treaty tunnel uncle union valley vessel village violin
vision volume voyage wagon weather wedding whisper window winter wisdom worker yellow
"""
WORDS = tuple(_LIST.split())
