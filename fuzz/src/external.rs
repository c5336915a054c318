//! Answers of a Lambda authorizer: only what says so in every word lets anybody in.

use edgeward::authenticators::external::lambda::Answer;
use serde_json::Value;

const RESOURCE: &str = "arn:aws:execute-api:local:000000000000:edgeward/$default/GET/orders/7";

/// The bytes are an answer.
pub fn run(data: &[u8]) {
    let Some(answer) = Answer::parse(data) else { return };
    // What was understood is one JSON object, whose members every other parser finds as well.
    let members: Value = serde_json::from_slice(data).unwrap();
    match answer {
        Answer::Simple { authorized, .. } => {
            assert_eq!(members["isAuthorized"], Value::Bool(authorized));
            assert!(members.get("policyDocument").is_none(), "two answers in one");
        }
        Answer::Policy { principal, policy, .. } => {
            assert_eq!(members["principalId"].as_str(), Some(&*principal));
            let allowed = policy.allows("execute-api:Invoke", RESOURCE);
            assert_eq!(policy.allows("EXECUTE-API:INVOKE", RESOURCE), allowed, "an action has no case");
            let mut reversed = policy.clone();
            reversed.0.reverse();
            assert_eq!(reversed.allows("execute-api:Invoke", RESOURCE), allowed, "a policy has no order");
            if allowed {
                assert!(policy.0.iter().any(|statement| statement.allows));
                let mut denied = policy.clone();
                denied.0.iter_mut().for_each(|statement| statement.allows = false);
                assert!(!denied.allows("execute-api:Invoke", RESOURCE));
            }
            let text = members["policyDocument"].to_string();
            for narrower in ["\"Condition\"", "\"NotAction\"", "\"NotResource\"", "\"Principal\""] {
                // As a value it is only a text.
                assert!(!text.contains(&format!("{narrower}:")), "{narrower} was passed over");
            }
        }
        Answer::Unauthorized => assert_eq!(members["errorMessage"], "Unauthorized"),
    }
}
