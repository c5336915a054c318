//! What can be known to be wrong with an expression before there is a request: names, members, kinds, and its cost.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::{NODES, values};
use crate::config::{header, nearest};

/// What is known of an expression that was found sound.
pub(super) struct Checked {
    pub(super) needs_identity: bool,
    pub(super) parameters: Vec<String>,
}

/// Checks an expression, whose value must be true or false.
pub(super) fn check(tree: &IdedExpr) -> Result<Checked, String> {
    let mut checker =
        Checker { variables: Vec::new(), walking: false, found: Checked { needs_identity: false, parameters: Vec::new() }, nodes: 0 };
    match checker.kind(tree)? {
        Kind::Bool | Kind::Any => Ok(checker.found),
        other => Err(format!("a condition is true or false, and this is {}", other.name())),
    }
}

/// What kind of value an expression has.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Bool,
    Number,
    Text,
    Null,
    List(Box<Kind>),
    /// Members that are known by name.
    Members(&'static [(&'static str, Member)]),
    /// Any text leads to a value of this kind.
    Map(Box<Kind>),
    /// Known only when there is a request.
    Any,
}

/// A member of a root, in a form that can stand in a table.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Member {
    Text,
    Number,
    Texts,
    Lists,
}

const REQUEST: &[(&str, Member)] = &[
    ("method", Member::Text),
    ("host", Member::Text),
    ("path", Member::Text),
    ("route", Member::Text),
    ("query", Member::Lists),
    ("headers", Member::Lists),
    ("size", Member::Number),
];

const CLIENT: &[(&str, Member)] = &[("ip", Member::Text)];

const IDENTITY: &[(&str, Member)] = &[
    ("subject", Member::Text),
    ("consumer", Member::Text),
    ("client", Member::Text),
    ("key_id", Member::Text),
    ("plan", Member::Text),
    ("method", Member::Text),
    ("scopes", Member::Texts),
    ("roles", Member::Texts),
];

const FUNCTIONS: [&str; 12] =
    ["startsWith", "endsWith", "contains", "matches", "size", "inNetwork", "string", "int", "double", "has", "exists", "all"];

struct Checker {
    /// The variables of macros, innermost last.
    variables: Vec<(String, Kind)>,
    /// Inside a macro: a second one there would cost the product of two lists.
    walking: bool,
    found: Checked,
    nodes: usize,
}

impl Checker {
    fn kind(&mut self, tree: &IdedExpr) -> Result<Kind, String> {
        self.nodes += 1;
        if self.nodes > NODES {
            return Err(format!("an expression of more than {NODES} parts"));
        }
        match &tree.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Ok(Kind::Bool),
                LiteralValue::Int(_) | LiteralValue::UInt(_) | LiteralValue::Double(_) => Ok(Kind::Number),
                LiteralValue::String(_) => Ok(Kind::Text),
                LiteralValue::Null => Ok(Kind::Null),
                LiteralValue::Bytes(_) => Err("bytes are not known here".to_owned()),
            },
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let kinds = list.elements.iter().map(|element| self.kind(element)).collect::<Result<Vec<_>, _>>()?;
                Ok(Kind::List(Box::new(kinds.into_iter().reduce(either).unwrap_or(Kind::Any))))
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Map(_) | Expr::Struct(_) => Err("mappings are not written in conditions".to_owned()),
            Expr::Unspecified => Err("is no expression".to_owned()),
        }
    }

    fn variable(&mut self, name: &str) -> Result<Kind, String> {
        if let Some((_, kind)) = self.variables.iter().rev().find(|(known, _)| known == name) {
            return Ok(kind.clone());
        }
        self.found.needs_identity |= matches!(name, "claims" | "identity");
        match name {
            "request" => Ok(Kind::Members(REQUEST)),
            "client" => Ok(Kind::Members(CLIENT)),
            "identity" => Ok(Kind::Members(IDENTITY)),
            "path" => Ok(Kind::Map(Box::new(Kind::Text))),
            "claims" => Ok(Kind::Map(Box::new(Kind::Any))),
            _ => Err(unknown("name", name, values::ROOTS.into_iter())),
        }
    }

    fn select(&mut self, select: &SelectExpr) -> Result<Kind, String> {
        let SelectExpr { operand, field, test } = select;
        if matches!(&operand.expr, Expr::Ident(name) if name == "path") {
            self.found.parameters.push(field.clone());
        }
        let member = match self.kind(operand)? {
            Kind::Members(members) => match members.iter().find(|(name, _)| name == field) {
                Some((_, member)) => (*member).into(),
                None => return Err(unknown("member", field, members.iter().map(|(name, _)| *name))),
            },
            Kind::Map(kind) => *kind,
            Kind::Any => Kind::Any,
            other => return Err(format!("{} has no member `{field}`", other.name())),
        };
        Ok(if *test { Kind::Bool } else { member })
    }

    fn call(&mut self, call: &CallExpr) -> Result<Kind, String> {
        let CallExpr { func_name, target, args } = call;
        let target = target.as_ref().map(|target| self.kind(target)).transpose()?;
        let arguments = args.iter().map(|argument| self.kind(argument)).collect::<Result<Vec<_>, _>>()?;
        let bools = |kinds: &[Kind], what: &str| match kinds.iter().find(|kind| !kind.may_be(&Kind::Bool)) {
            None => Ok(Kind::Bool),
            Some(kind) => Err(format!("`{what}` joins what is true or false, and not {}", kind.name())),
        };
        match (func_name.as_str(), &target, arguments.as_slice()) {
            (operators::LOGICAL_AND, None, kinds) => bools(kinds, "&&"),
            (operators::LOGICAL_OR, None, kinds) => bools(kinds, "||"),
            (operators::LOGICAL_NOT, None, kinds) => bools(kinds, "!"),
            (operators::NOT_STRICTLY_FALSE, None, _) => Ok(Kind::Bool),
            (operators::EQUALS | operators::NOT_EQUALS, None, [left, right]) => match left.may_be(right) {
                true => Ok(Kind::Bool),
                false => Err(format!("{} is never equal to {}", left.name(), right.name())),
            },
            (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, None, [left, right]) => {
                let ordered = [Kind::Number, Kind::Text].iter().any(|kind| left.may_be(kind) && right.may_be(kind));
                if ordered { Ok(Kind::Bool) } else { Err(format!("{} and {} have no order", left.name(), right.name())) }
            }
            (operators::ADD, None, [left, right])
                if left.may_be(right) && !matches!(left, Kind::Bool | Kind::Members(_) | Kind::Map(_)) =>
            {
                Ok(either(left.clone(), right.clone()))
            }
            (operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, None, [left, right])
                if left.may_be(&Kind::Number) && right.may_be(&Kind::Number) =>
            {
                Ok(Kind::Number)
            }
            (operators::NEGATE, None, [kind]) if kind.may_be(&Kind::Number) => Ok(Kind::Number),
            (operators::CONDITIONAL, None, [condition, yes, no]) => {
                bools(std::slice::from_ref(condition), "?")?;
                Ok(either(yes.clone(), no.clone()))
            }
            (operators::INDEX, None, [of, index]) => self.index(of, index, args),
            (operators::IN, None, [item, of]) => match of {
                Kind::List(kind) if item.may_be(kind) => Ok(Kind::Bool),
                Kind::Map(_) if item.may_be(&Kind::Text) => Ok(Kind::Bool),
                Kind::Any => Ok(Kind::Bool),
                _ => Err(format!("{} is never in {}", item.name(), of.name())),
            },
            ("startsWith" | "endsWith" | "contains" | "matches", Some(target), [argument])
                if target.may_be(&Kind::Text) && argument.may_be(&Kind::Text) =>
            {
                Ok(Kind::Bool)
            }
            ("inNetwork", None, [address, network]) if address.may_be(&Kind::Text) && network.may_be(&Kind::Text) => Ok(Kind::Bool),
            ("size", Some(kind), []) | ("size", None, [kind]) if matches!(kind, Kind::Text | Kind::List(_) | Kind::Any) => Ok(Kind::Number),
            ("string", None, [_]) => Ok(Kind::Text),
            ("int" | "double", None, [kind]) if kind.may_be(&Kind::Number) || kind.may_be(&Kind::Text) => Ok(Kind::Number),
            (name, ..) if FUNCTIONS.contains(&name) => Err(format!("`{name}` is not called like this")),
            (name, ..) if name.chars().all(char::is_alphanumeric) => Err(unknown("function", name, FUNCTIONS.into_iter())),
            (operator, _, kinds) => {
                let kinds: Vec<_> = kinds.iter().map(Kind::name).collect();
                Err(format!("`{}` does not go with {}", operator.trim_matches('_'), kinds.join(" and ")))
            }
        }
    }

    fn index(&mut self, of: &Kind, index: &Kind, args: &[IdedExpr]) -> Result<Kind, String> {
        let written = match args {
            [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(text)), .. }] => Some((of, text.inner())),
            _ => None,
        };
        match (&args.first().map(|of| &of.expr), written) {
            (Some(Expr::Ident(name)), Some((_, parameter))) if name == "path" => self.found.parameters.push(parameter.to_owned()),
            (Some(Expr::Ident(name)), None) if name == "path" => return Err("a parameter of the path is written out".to_owned()),
            (Some(Expr::Select(select)), Some((_, header)))
                if select.field == "headers" && http::HeaderName::try_from(header).is_ok_and(|header| header::is_reserved(&header)) =>
            {
                return Err(format!("a caller's `{header}` is never heard"));
            }
            _ => {}
        }
        match of {
            Kind::Map(kind) if index.may_be(&Kind::Text) => Ok(Kind::clone(kind)),
            Kind::List(kind) if index.may_be(&Kind::Number) => Ok(Kind::clone(kind)),
            Kind::Any => Ok(Kind::Any),
            Kind::Members(_) => Err("members of this are written with a dot".to_owned()),
            _ => Err(format!("{} has nothing at {}", of.name(), index.name())),
        }
    }

    /// A macro such as `exists`, which walks a list.
    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<Kind, String> {
        if self.walking {
            return Err("one list is walked inside another, which could take long".to_owned());
        }
        let element = match self.kind(&comprehension.iter_range)? {
            Kind::List(kind) => *kind,
            Kind::Any => Kind::Any,
            other => return Err(format!("{} is no list", other.name())),
        };
        let outer = self.variables.len();
        self.variables.push((comprehension.iter_var.clone(), element));
        if comprehension.iter_var2.is_some() {
            return Err("a macro has one variable".to_owned());
        }
        self.walking = true;
        let found = self.accumulate(comprehension);
        self.walking = false;
        self.variables.truncate(outer);
        found
    }

    fn accumulate(&mut self, comprehension: &ComprehensionExpr) -> Result<Kind, String> {
        let start = self.kind(&comprehension.accu_init)?;
        self.variables.push((comprehension.accu_var.clone(), start));
        self.kind(&comprehension.loop_cond)?;
        self.kind(&comprehension.loop_step)?;
        self.kind(&comprehension.result)
    }
}

impl Kind {
    /// Whether a value of this kind can be one of that.
    fn may_be(&self, other: &Self) -> bool {
        match (self, other) {
            // A claim that is null and one that is missing are asked for in the same way.
            (Self::Any | Self::Null, _) | (_, Self::Any | Self::Null) => true,
            (Self::List(own), Self::List(other)) => own.may_be(other),
            (own, other) => own == other,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Bool => "a truth value",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Members(_) | Self::Map(_) => "a mapping",
            Self::Any => "any value",
        }
    }
}

impl From<Member> for Kind {
    fn from(member: Member) -> Self {
        match member {
            Member::Text => Self::Text,
            Member::Number => Self::Number,
            Member::Texts => Self::List(Box::new(Self::Text)),
            Member::Lists => Self::Map(Box::new(Self::List(Box::new(Self::Text)))),
        }
    }
}

fn either(one: Kind, other: Kind) -> Kind {
    if one == other { one } else { Kind::Any }
}

fn unknown(what: &str, name: &str, known: impl Iterator<Item = &'static str>) -> String {
    let known: Vec<&str> = known.collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("an unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("an unknown {what} `{name}`; known are {}", known.join(", ")),
    }
}
