//! Makes strings from outside harmless on a terminal and in a file that will be shown on one.
//!
//! Any process chooses its own comm, arguments and paths. Unescaped they can
//! move the cursor, forge a line, or read from right to left.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The string with everything that is not seen as itself shown by its code: controls, the
/// characters that turn the reading direction, and other invisible ones.
///
/// The forms are those of Rust and C: `\n`, `\t`, `\r`, `\x1b`, `\u{202e}`. A backslash is shown as
/// `\\`, so that what is shown stands for one string only.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\';
    if text.as_bytes().iter().all(plain) {
        return Cow::Borrowed(text);
    }
    let Some(first) = text.find(is_shown_by_code) else {
        return Cow::Borrowed(text);
    };
    let (clean, rest) = text.split_at(first);
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(clean);
    for character in rest.chars() {
        push(&mut shown, character);
    }
    Cow::Owned(shown)
}

fn push(shown: &mut String, character: char) {
    match character {
        '\n' => shown.push_str(r"\n"),
        '\r' => shown.push_str(r"\r"),
        '\t' => shown.push_str(r"\t"),
        '\\' => shown.push_str(r"\\"),
        _ if !is_shown_by_code(character) => shown.push(character),
        // Writing to a String cannot fail.
        _ if character.is_ascii() => drop(write!(shown, r"\x{:02x}", u32::from(character))),
        _ => drop(write!(shown, r"\u{{{:x}}}", u32::from(character))),
    }
}

/// Whether a character is a control or a backslash, ends a line, turns the reading direction or
/// cannot be seen: Unicode's `Default_Ignorable_Code_Point`, unassigned ones included, and what
/// that leaves out of the controls and separators.
fn is_shown_by_code(character: char) -> bool {
    matches!(
        character,
        '\\'
            // C0, DEL and C1.
            | '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}' // soft hyphen
            | '\u{34f}' // combining grapheme joiner
            | '\u{61c}' // Arabic letter mark
            | '\u{115f}'..='\u{1160}' // Hangul fillers
            | '\u{17b4}'..='\u{17b5}' // Khmer inherent vowels
            | '\u{180b}'..='\u{180f}' // Mongolian variation selectors
            | '\u{200b}'..='\u{200f}' // zero width, and direction marks
            | '\u{2028}'..='\u{202e}' // line and paragraph separator, direction embeddings
            | '\u{2060}'..='\u{206f}' // word joiner, direction isolates
            | '\u{3164}' // Hangul filler
            | '\u{fe00}'..='\u{fe0f}' // variation selectors
            | '\u{feff}' // byte order mark
            | '\u{ffa0}' // Hangul filler
            | '\u{fff0}'..='\u{fffb}' // unassigned, and interlinear annotation
            | '\u{1bca0}'..='\u{1bca3}' // shorthand format controls
            | '\u{1d173}'..='\u{1d17a}' // musical format controls
            | '\u{e0000}'..='\u{e0fff}' // tags, more variation selectors
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_harmless_is_borrowed() {
        for text in ["", "node", "a b~!\"'$", "größe", "日本語", "🦀", "\u{fffd}"] {
            assert!(
                matches!(escape(text), Cow::Borrowed(shown) if shown == text),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_harmful_is_shown_by_its_code() {
        for (text, shown) in [
            ("a\nb", r"a\nb"),
            ("\r\t", r"\r\t"),
            ("\0", r"\x00"),
            ("\x1b[2J", r"\x1b[2J"),
            ("\x7f", r"\x7f"),
            ("\u{9b}2J", r"\u{9b}2J"),
            ("\u{85}", r"\u{85}"),
            (r"\n", r"\\n"),
            ("soft\u{ad}hyphen", r"soft\u{ad}hyphen"),
            ("\u{61c}", r"\u{61c}"),
            ("\u{200b}\u{200f}", r"\u{200b}\u{200f}"),
            ("\u{2028}\u{2029}", r"\u{2028}\u{2029}"),
            ("ü\u{202e}ü", r"ü\u{202e}ü"),
            ("\u{2066}\u{2069}", r"\u{2066}\u{2069}"),
            ("\u{feff}", r"\u{feff}"),
            ("\u{fff9}\u{fffb}", r"\u{fff9}\u{fffb}"),
            ("\u{e0041}", r"\u{e0041}"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    /// The string that an escaped one stands for.
    fn unescape(shown: &str) -> String {
        let mut text = String::new();
        let mut rest = shown.chars();
        while let Some(character) = rest.next() {
            if character != '\\' {
                text.push(character);
                continue;
            }
            let code = match rest.next().unwrap() {
                'n' => '\n'.into(),
                'r' => '\r'.into(),
                't' => '\t'.into(),
                '\\' => '\\'.into(),
                'x' => u32::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16).unwrap(),
                'u' => {
                    assert_eq!(rest.next(), Some('{'));
                    let digits: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    u32::from_str_radix(&digits, 16).unwrap()
                }
                other => panic!("\\{other} in {shown}"),
            };
            text.push(char::from_u32(code).unwrap());
        }
        text
    }

    proptest! {
        #[test]
        fn what_is_shown_stands_for_one_string(
            text in r"([\x00-\x20\\\x7f-\xadnxu{}]|\PC|\p{Cf}|\p{Zl}|.){0,20}"
        ) {
            let shown = escape(&text);
            prop_assert!(!shown.chars().any(char::is_control), "{}", shown);
            prop_assert_eq!(unescape(&shown), text);
        }
    }
}
