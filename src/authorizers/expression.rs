//! Conditions in CEL, the Common Expression Language: read and checked when the configuration is, asked of each request.
//!
//! Names, members and kinds are checked at load as far as they can be known then. What only a request can show (a claim that is missing, or of
//! another kind) is an error of the evaluation, and whoever asks takes that for the refusing answer.

mod check;
mod values;

use std::sync::Arc;

use cel::common::ast::{Expr, IdedExpr, LiteralValue};
use cel::common::types::{self, CelBool};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};

use crate::request::{Identity, Request};
use values::{Network, Pattern, Scope};

/// The longest expression, in nodes of its syntax tree: evaluation is at most this, times the elements of one list where a macro walks it.
const NODES: usize = 256;

/// How deep an expression may nest.
const DEPTH: u16 = 32;

/// A condition on a request.
pub struct Expression {
    tree: IdedExpr,
    /// What is written as a literal and worth preparing, by the name that stands for it in the tree.
    patterns: Vec<Pattern>,
    networks: Vec<Network>,
    environment: Arc<Env>,
    needs_identity: bool,
    parameters: Vec<String>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Expression").field("needs_identity", &self.needs_identity).finish_non_exhaustive()
    }
}

/// What every expression of a configuration shares: the functions they may call.
#[derive(Clone)]
pub struct Language(Arc<Env>);

impl Default for Language {
    fn default() -> Self {
        let mut environment = Env::stdlib();
        let added = environment
            .add_member_overload("matches", "text_matches_pattern", types::STRING_TYPE, vec![types::DYN_TYPE], values::matches)
            .and_then(|()| environment.add_overload("inNetwork", "address_in_network", vec![types::STRING_TYPE, types::DYN_TYPE], values::in_network));
        debug_assert!(added.is_ok(), "both names are free");
        Self(Arc::new(environment))
    }
}

impl Language {
    /// Reads an expression, or says what is wrong with it.
    pub fn read(&self, text: &str) -> Result<Expression, String> {
        let parser = cel::parser::Parser::new().max_recursion_depth(DEPTH);
        let mut tree = parser.parse(text).map_err(|errors| match errors.errors.first() {
            Some(error) => format!("column {} of the expression: {}", error.pos.1, error.msg),
            None => "is no expression".to_owned(),
        })?;
        let checked = check::check(&tree)?;
        let (mut patterns, mut networks) = (Vec::new(), Vec::new());
        prepare(&mut tree, &mut patterns, &mut networks)?;
        let environment = Arc::clone(&self.0);
        Ok(Expression { tree, patterns, networks, environment, needs_identity: checked.needs_identity, parameters: checked.parameters })
    }
}

impl Expression {
    /// Whether it holds of this request. The error says in a word why that cannot be told.
    pub fn holds(&self, request: &Request<'_>, identity: Option<&Identity>) -> Result<bool, &'static str> {
        let scope = Scope { request, identity, patterns: &self.patterns, networks: &self.networks };
        let resolver: &dyn VariableResolver = &scope;
        let mut context = Context::with_env(Arc::clone(&self.environment));
        context.set_variable_resolver(resolver);
        match Value::resolve_val(&self.tree, &context) {
            Ok(value) => value.downcast_ref::<CelBool>().map(|value| *value.inner()).ok_or("expression_no_bool"),
            Err(ExecutionError::NoSuchKey(_)) => Err("expression_missing"),
            Err(_) => Err("expression_error"),
        }
    }

    /// Whether it speaks of the caller's identity, so that it cannot be asked before that is known.
    pub fn needs_identity(&self) -> bool {
        self.needs_identity
    }

    /// The path parameters it speaks of.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(String::as_str)
    }
}

/// Compiles the literal patterns and networks once; in the tree a name stands for each that no expression can write.
fn prepare(tree: &mut IdedExpr, patterns: &mut Vec<Pattern>, networks: &mut Vec<Network>) -> Result<(), String> {
    match &mut tree.expr {
        Expr::Call(call) => {
            let last = call.args.last_mut().map(|last| &mut last.expr);
            match (call.func_name.as_str(), last) {
                ("matches", Some(argument)) => {
                    let Expr::Literal(LiteralValue::String(text)) = &*argument else { return Err("`matches` takes a pattern written out".to_owned()) };
                    let name = format!("{}{}", values::PATTERN, patterns.len());
                    patterns.push(Pattern::read(text.inner())?);
                    *argument = Expr::Ident(name);
                }
                ("inNetwork", Some(argument)) => {
                    let Expr::Literal(LiteralValue::String(text)) = &*argument else { return Err("`inNetwork` takes a network written out".to_owned()) };
                    let name = format!("{}{}", values::NETWORK, networks.len());
                    networks.push(Network::read(text.inner())?);
                    *argument = Expr::Ident(name);
                }
                _ => {}
            }
            for part in call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args) {
                prepare(part, patterns, networks)?;
            }
        }
        Expr::Comprehension(comprehension) => {
            let parts = [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ];
            for part in parts {
                prepare(part, patterns, networks)?;
            }
        }
        Expr::List(list) => list.elements.iter_mut().try_for_each(|element| prepare(element, patterns, networks))?,
        Expr::Select(select) => prepare(&mut select.operand, patterns, networks)?,
        Expr::Literal(_) | Expr::Ident(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
    Ok(())
}
