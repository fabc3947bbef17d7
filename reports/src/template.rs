//! The templates, compiled into the program.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::error::ReportError;

/// Every template by the name others include it with.
const TEMPLATES: [(&str, &str); 12] = [
    ("layout.html", include_str!("../templates/layout.html")),
    ("index.html", include_str!("../templates/index.html")),
    ("paper.html", include_str!("../templates/paper.html")),
    ("macros.html", include_str!("../templates/macros.html")),
    ("results.html", include_str!("../templates/results.html")),
    ("verdict.html", include_str!("../templates/verdict.html")),
    ("provenance.html", include_str!("../templates/provenance.html")),
    ("style.css", include_str!("../templates/style.css")),
    ("page.js", include_str!("../templates/page.js")),
    ("plot/lines.svg", include_str!("../templates/plot/lines.svg")),
    ("plot/intervals.svg", include_str!("../templates/plot/intervals.svg")),
    ("plot/spark.svg", include_str!("../templates/plot/spark.svg")),
];

/// Renders contexts.
pub(crate) struct Templates(Environment<'static>);

impl Templates {
    /// All templates, parsed.
    pub fn new() -> Result<Self, ReportError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // a line that only holds a tag leaves no line behind
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failed("syntax", e))?);
        for (name, text) in TEMPLATES {
            environment.add_template(name, text).map_err(|e| failed(name, e))?;
        }
        Ok(Self(environment))
    }

    /// The page that a template makes of a context.
    pub fn render(
        &self,
        template: &str,
        page: &str,
        context: &impl Serialize,
    ) -> Result<String, ReportError> {
        let template = self.0.get_template(template).map_err(|e| failed(page, e))?;
        template.render(Value::from(Serde(context))).map_err(|e| failed(page, e))
    }
}

fn failed(page: &str, source: minijinja::Error) -> ReportError {
    ReportError::Template { page: page.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_switches_escaping_off() {
        for (name, text) in TEMPLATES {
            for word in ["|safe", "| safe", "autoescape"] {
                assert!(!text.contains(word), "{name} contains {word}");
            }
        }
    }

    #[test]
    fn all_templates_parse() {
        Templates::new().unwrap();
    }
}
