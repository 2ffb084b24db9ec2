//! A small checker of JSON Schema 2020-12, for the keywords that `schema.json` uses; any other keyword is an error, so
//! that nothing in the schema goes unchecked.

use serde_json::Value;

use crate::report::fixtures::{exact_report, kernel_report};
use crate::report::json_schema;
use crate::report::tests::all_reports;

/// Checks a value against `schema.json`; the error names the place.
pub(super) fn check(value: &Value) -> Result<(), String> {
    let text = json_schema().map_err(|error| error.to_string())?;
    let schema: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    valid(&schema, &schema, value, "$")
}

fn valid(root: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let keywords = schema.as_object().ok_or("a schema is an object")?;
    for (keyword, rule) in keywords {
        let holds = match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let target = rule
                    .as_str()
                    .and_then(|path| root.pointer(path.strip_prefix('#')?));
                valid(root, target.ok_or("a dangling $ref")?, value, place)?;
                true
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| has_type(value, name)),
                name => has_type(value, name),
            },
            "const" => rule == value,
            "enum" => rule.as_array().is_some_and(|values| values.contains(value)),
            "minimum" => value.is_null() || value.as_f64() >= rule.as_f64(),
            "maximum" => value.is_null() || value.as_f64() <= rule.as_f64(),
            "required" => rule.as_array().is_some_and(|names| {
                names
                    .iter()
                    .all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
            }),
            "properties" => {
                for (name, rule) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        valid(root, rule, value, &format!("{place}.{name}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if schema
                        .get("properties")
                        .and_then(|known| known.get(name))
                        .is_none()
                    {
                        valid(root, rule, value, &format!("{place}.{name}"))?;
                    }
                }
                true
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    valid(root, rule, value, &format!("{place}[{index}]"))?;
                }
                true
            }
            other => return Err(format!("the checker does not know {other}")),
        };
        if !holds {
            return Err(format!("{place}: {value} violates {keyword} {rule}"));
        }
    }
    Ok(())
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

#[test]
fn reports_keep_the_schema() {
    for (name, report) in all_reports() {
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(check(&json), Ok(()), "{name}");
    }
}

/// Every field that is written is described, so that the schema cannot fall behind.
#[test]
fn the_schema_describes_every_field() {
    let schema: Value = serde_json::from_str(&json_schema().unwrap()).unwrap();
    let json = serde_json::to_value(exact_report()).unwrap();
    let kernel = serde_json::to_value(kernel_report()).unwrap();
    let names = |value: &Value, pointer: &str| {
        let object = value.pointer(pointer).unwrap().as_object().unwrap();
        let mut names: Vec<String> = object.keys().cloned().collect();
        names.sort();
        names
    };
    for (described, written) in [
        ("/$defs/kernel/properties", "/kernel"),
        ("/$defs/kernel_level/properties", "/kernel/levels/0"),
        ("/$defs/process_kernel/properties", "/processes/0/kernel"),
        (
            "/$defs/holding/properties",
            "/processes/0/kernel/holdings/0",
        ),
        (
            "/$defs/descriptor_kind/properties",
            "/processes/0/kernel/descriptor_kinds/0",
        ),
    ] {
        assert_eq!(names(&schema, described), names(&kernel, written));
    }
    for (described, written) in [
        ("/properties", ""),
        ("/$defs/process/properties", "/processes/0"),
        (
            "/$defs/memory_point/properties",
            "/processes/0/memory_series/0",
        ),
        ("/$defs/probe/properties", "/processes/0/probes/0"),
        ("/$defs/site/properties", "/sites/0"),
        ("/$defs/frame/properties", "/sites/0/frames/0"),
        ("/$defs/omitted/properties", "/omitted"),
        ("/$defs/suppressed/properties", "/suppressed/0"),
        ("/$defs/overhead/properties", "/overhead"),
    ] {
        assert_eq!(names(&schema, described), names(&json, written));
    }
}

#[test]
fn violations_are_found() {
    let good = serde_json::to_value(exact_report()).unwrap();
    for (pointer, bad) in [
        ("/schema", 2.into()),
        ("/sites/0/verdict", "leaky".into()),
        ("/sites/0/inuse_bytes", 1.5.into()),
        ("/sites/0/inuse_bytes", (-1).into()),
        ("/sites/0/frames/0/kind", Value::Null),
        ("/sites/0/frames/0/inlined", Value::Null),
        ("/losses/event_lost", "3".into()),
        ("/processes/0/comm", Value::Null),
        ("/overhead", Value::Null),
    ] {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = bad;
        assert!(check(&json).is_err(), "{pointer}");
    }
    let mut json = good;
    json.as_object_mut().unwrap().remove("tier");
    assert!(check(&json).is_err());
}
