//! `first,key=value,flag`: the text of `--net`, split into its items, and values in quotes for `--disk` too.

use std::borrow::Cow;

/// One item of a specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// `key=value`
    Pair(String, String),
    /// A word without `=`: a flag, or the thing itself when it comes first.
    Word(String),
}

/// The text is not a list of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// nothing between two commas
    #[error("an item is empty; write items with one comma between them")]
    EmptyItem,
    /// a quote without its end
    #[error("a double quote is not closed")]
    OpenQuote,
    /// text behind the closing quote
    #[error("text follows a closing double quote; quote the whole value")]
    AfterQuote,
}

/// Splits at commas. A value (or a word) in double quotes may contain commas and `=`, and `""` stands for
/// a double quote there: `path="a,b.img",ro`.
pub(crate) fn split(text: &str) -> Result<Vec<Item>, SpecError> {
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        let end_of_key = rest.find(['=', ',', '"']).unwrap_or(rest.len());
        let key = match rest.get(end_of_key..).and_then(|r| r.strip_prefix('=')) {
            Some(value) => {
                let key = rest.get(..end_of_key).unwrap_or_default();
                rest = value;
                Some(key)
            }
            None => None,
        };
        let value = take_value(&mut rest)?;
        match key {
            Some("") => return Err(SpecError::EmptyItem),
            Some(key) => items.push(Item::Pair(key.to_owned(), value)),
            None if value.is_empty() => return Err(SpecError::EmptyItem),
            None => items.push(Item::Word(value)),
        }
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok(items),
        }
    }
}

/// Takes a value up to the next comma or the end, which stays in `rest`.
pub(super) fn take_value(rest: &mut &str) -> Result<String, SpecError> {
    let Some(mut quoted) = rest.strip_prefix('"') else {
        let (value, tail) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
        *rest = tail;
        return Ok(value.to_owned());
    };
    let mut value = String::new();
    loop {
        let (part, tail) = quoted.split_once('"').ok_or(SpecError::OpenQuote)?;
        value.push_str(part);
        match tail.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                quoted = more;
            }
            None if tail.is_empty() || tail.starts_with(',') => {
                *rest = tail;
                return Ok(value);
            }
            None => return Err(SpecError::AfterQuote),
        }
    }
}

/// The value so that [`take_value`] reads it back, in quotes only where it needs them.
pub(super) fn quote(value: &str) -> Cow<'_, str> {
    if value.contains(['"', ',', '=', ' ', '\t', '\n', '\r']) || value.is_empty() {
        Cow::Owned(format!("\"{}\"", value.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_is_read_back() {
        for value in ["", "a", "a,b", "a\"b", "\"", "\"\",", " a "] {
            let quoted = quote(value);
            assert_eq!(take_value(&mut &*quoted), Ok(value.to_owned()), "{quoted}");
        }
    }

    fn pair(key: &str, value: &str) -> Item {
        Item::Pair(key.into(), value.into())
    }

    fn word(text: &str) -> Item {
        Item::Word(text.into())
    }

    #[test]
    fn texts_and_their_items() {
        let table = [
            ("img", Ok(vec![word("img")])),
            ("img,ro", Ok(vec![word("img"), word("ro")])),
            ("path=img,vdev=xvda", Ok(vec![pair("path", "img"), pair("vdev", "xvda")])),
            ("path=a=b", Ok(vec![pair("path", "a=b")])),
            ("path=", Ok(vec![pair("path", "")])),
            (r#"path="a,b=c",ro"#, Ok(vec![pair("path", "a,b=c"), word("ro")])),
            (r#"path="a""b""#, Ok(vec![pair("path", "a\"b")])),
            (r#""a,b=c""#, Ok(vec![word("a,b=c")])),
            (r#"path="""#, Ok(vec![pair("path", "")])),
            (r#"path=a"b"#, Ok(vec![pair("path", "a\"b")])),
            (r#"a"b=c,ro"#, Ok(vec![word("a\"b=c"), word("ro")])),
            ("", Err(SpecError::EmptyItem)),
            (",", Err(SpecError::EmptyItem)),
            ("img,", Err(SpecError::EmptyItem)),
            (",img", Err(SpecError::EmptyItem)),
            ("=img", Err(SpecError::EmptyItem)),
            (r#""""#, Err(SpecError::EmptyItem)),
            (r#"path="a"#, Err(SpecError::OpenQuote)),
            (r#"path="a""#.trim_end_matches('"'), Err(SpecError::OpenQuote)),
            (r#"path="a"b"#, Err(SpecError::AfterQuote)),
        ];
        for (text, expected) in table {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
