//! Where the parts of a JSON text are: to change one of them and leave every
//! other byte as it is.

use std::ops::Range;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde_json::{Deserializer, Error};

/// Where a value is, in bytes.
pub type Span = Range<usize>;

/// The members of the object at the beginning of a text.
pub fn members(text: &str) -> Result<Vec<(String, Span)>, Error> {
    let mut cursor = Cursor { text, at: 0 };
    let mut found = Vec::new();
    cursor.all_between('{', '}', |cursor| {
        let name = cursor.value::<String>()?.0;
        cursor.take(':')?;
        found.push((name, cursor.value::<IgnoredAny>()?.1));
        Ok(())
    })?;
    Ok(found)
}

/// The elements of the array at a place.
pub fn elements(text: &str, array: &Span) -> Result<Vec<Span>, Error> {
    let mut cursor = Cursor {
        text,
        at: array.start,
    };
    let mut found = Vec::new();
    cursor.all_between('[', ']', |cursor| {
        found.push(cursor.value::<IgnoredAny>()?.1);
        Ok(())
    })?;
    Ok(found)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        let space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r');
        self.at += self.rest().len() - self.rest().trim_start_matches(space).len();
    }

    fn is_next(&mut self, character: char) -> bool {
        self.skip_space();
        self.rest().starts_with(character)
    }

    fn take(&mut self, character: char) -> Result<(), Error> {
        if !self.is_next(character) {
            return Err(Error::custom(format_args!(
                "no {character:?} at byte {}",
                self.at
            )));
        }
        self.at += character.len_utf8();
        Ok(())
    }

    fn value<T: DeserializeOwned>(&mut self) -> Result<(T, Span), Error> {
        self.skip_space();
        let start = self.at;
        let mut values = Deserializer::from_str(self.rest()).into_iter();
        let value = values.next();
        let length = values.byte_offset();
        let value = value.unwrap_or_else(|| Err(Error::custom("the text ends too early")))?;
        self.at += length;
        Ok((value, start..self.at))
    }

    /// Every part between two brackets, with commas between them.
    fn all_between(
        &mut self,
        open: char,
        close: char,
        mut part: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.take(open)?;
        if self.is_next(close) {
            return self.take(close);
        }
        loop {
            part(self)?;
            if self.is_next(close) {
                return self.take(close);
            }
            self.take(',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_text_are_where_they_are() {
        let text = r#" { "a" : 1.5 ,"b\"":[ {"x":[]} , true,"]"] } "#;
        let members = members(text).unwrap();
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b\""]);
        assert_eq!(&text[members[0].1.clone()], "1.5");
        let elements = elements(text, &members[1].1).unwrap();
        let elements: Vec<&str> = elements.into_iter().map(|span| &text[span]).collect();
        assert_eq!(elements, [r#"{"x":[]}"#, "true", r#""]""#]);
    }

    #[test]
    fn what_is_no_object_or_array_is_an_error() {
        for text in ["", "[]", "{", r#"{"a"}"#, r#"{"a":1,}"#, r#"{"a":}"#] {
            assert!(members(text).is_err(), "{text}");
        }
        assert!(elements("{}", &(0..2)).is_err());
        assert_eq!(members("{ }").unwrap(), []);
        assert!(elements("[\n]", &(0..3)).unwrap().is_empty());
    }
}
