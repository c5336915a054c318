//! s
use crate::request::*;
#[derive(Debug)] pub struct Authorizers; impl Authorizers{ pub fn compile(_: &crate::config::Authorize)->Self{Self} pub fn authorize(&self,_: &Identity)->Result<(),Rejection>{Ok(())} }
